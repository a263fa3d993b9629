"""Boards: their definitions, tables, figures and file formats."""
