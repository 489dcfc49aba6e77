analyze latest
