"""Figures, from stored records alone wherever that is possible."""
