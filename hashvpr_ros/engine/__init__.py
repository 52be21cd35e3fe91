"""Engines: images in, packed codes and features out. Free of ROS and of torch."""
