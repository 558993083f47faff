"""What an image is worth: likelihoods, scores and their calibration, classes, critics."""
