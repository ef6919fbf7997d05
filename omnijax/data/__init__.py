"""From raw files to packed batches: documents, records, the plan and the loader; numpy only."""
