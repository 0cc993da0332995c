"""Scenes: pictures of one place and their cameras, from whatever programs and data sets write them down in."""
