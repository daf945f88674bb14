"""From the files that runs leave behind to tables, curves and one page; reads files only, imports no project."""
