"""Where the items are: one file a channel, behind the protocol `Channel` of the ledger."""
