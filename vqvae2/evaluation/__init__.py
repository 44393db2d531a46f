"""The evaluation job: sets of images, what they are compared with, and the results."""
