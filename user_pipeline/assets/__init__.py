"""The assets, along the flow of the data: raw, cleaned, marts, exports."""
