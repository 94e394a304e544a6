"""Training of the small vision-language model that ships in `models/embedded`."""
