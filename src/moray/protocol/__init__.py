"""The wire: messages, framing, connections, and the reactor that reads them."""
