"""Workers placed and joined, and the offline router between them. PURE."""
