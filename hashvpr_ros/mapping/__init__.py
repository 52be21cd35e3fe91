"""Which images become places of the map."""
