"""A stream of keypoints, shown in the browser with its classes while it runs."""
