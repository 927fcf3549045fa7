"""Protobuf messages and gRPC stubs, written by scripts/protos from protos/; not to be edited."""
