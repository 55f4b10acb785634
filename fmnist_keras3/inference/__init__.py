"""Predictions on the user's own pictures: reading, preparing, classifying, and a sheet."""
