"""The one training core. It knows no recipe and no model."""
