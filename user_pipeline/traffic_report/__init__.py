"""The traffic report: what happened on a day, collected from the lake, drawn, and put on one page of HTML."""
