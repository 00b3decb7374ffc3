"""`python -m export` turns a trained run into files for a device; the clients in edge/, web/ and android/ run them."""
