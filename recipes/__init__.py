"""Recipes that ship with kdfw; imported as `kdfw_recipes` only to find the files."""
