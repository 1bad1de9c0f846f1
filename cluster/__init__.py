"""Where the members live: in this process or on Ray. The only folder that imports ray."""
