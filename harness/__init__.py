"""The harness, room by room; each knows the rooms below it and nothing above.

    reporting/   tables, figures, the page, W&B: read the store, never a live run
    sweep/       many cells: plans, launchers, workers that may die, what they are doing
    cell/        one run: prepare, answer, meter, calibrate, ranks, shared vision features
    evaluation/  benchmarks: drawn and published data, lmms-eval, VLMEvalKit, judges
    cost/        compute and time: ledger, conventions, budgets, profile, timing
    store/       results on disk: journal, lease, reuse, provenance, and their one reader
    request/     what is asked: composed, checked, completed, identified; no torch

``cli.py`` puts them together: arguments in, a run or one line of error out.
"""
