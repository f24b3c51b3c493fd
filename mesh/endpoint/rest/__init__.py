"""REST: the V2 and V1 protocols over HTTP, translated into the calls that gRPC clients make."""
