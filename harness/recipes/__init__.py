"""Recipes: which training rows are taken, in which order and weight, or what is put in their place."""
