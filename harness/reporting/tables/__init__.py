"""Tables, made from the store alone."""
