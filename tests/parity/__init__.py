"""The unpruned cell against the engines' own clients: ids, pixels, new tokens, answers, scores.

``stock_lmms`` and ``stock_vlm`` are processes of their own that import nothing of the project;
``product`` runs the same rows through cells. All three log at the model's ``generate``
(:mod:`tests.parity.recorder`). ``python -m tests.parity`` prints the table.
"""
