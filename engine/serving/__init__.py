"""The gRPC surface; it translates, the router decides."""
