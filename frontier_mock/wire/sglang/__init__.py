"""SGLang 0.5.23's HTTP wire: bytes to plans, plans and engine words to bytes. Pure, like `wire`."""
