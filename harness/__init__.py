"""The experiment side: cells, store, engines, data, tables. Importing it imports no torch."""
