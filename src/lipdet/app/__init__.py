"""A web page to play with: pictures, detectors, ε, certificates and attacks."""
