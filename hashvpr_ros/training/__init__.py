"""Training of the float and the hash branch beside a frozen backbone. Needs torch."""
