"""Publishing: releases in an OCI format for registries, buckets and folders."""
