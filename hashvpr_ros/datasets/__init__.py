"""Readers: folders of images, the VPR-Bench layout, bags."""
