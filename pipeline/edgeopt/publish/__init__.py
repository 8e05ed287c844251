"""Publishing: releases as OCI artifacts in registries, buckets and folders."""
