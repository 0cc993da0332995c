"""What the demo works on: photographs with their licenses, and a scene of its own."""
