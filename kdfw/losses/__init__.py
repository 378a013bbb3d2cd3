"""The field's common losses over `Signals`."""
