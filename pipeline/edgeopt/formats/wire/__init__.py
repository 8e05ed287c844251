"""Encodings that several formats share: flatbuffers, protobuf, safetensors, zip archives."""
