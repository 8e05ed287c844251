"""What leaves the house: releases in an OCI form that registries, buckets and folders hold alike."""
