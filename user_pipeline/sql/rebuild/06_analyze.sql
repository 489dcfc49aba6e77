analyze pairs
