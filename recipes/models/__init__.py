"""The networks that the recipes train or look through."""
