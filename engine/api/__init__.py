"""Values and wire formats that clients and servers share; standard library and protobuf only."""
