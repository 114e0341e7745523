"""Tasks and updates as messages: records, packing, validation, compression."""
