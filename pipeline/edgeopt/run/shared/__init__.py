"""A store that several machines share, behind a folder of this one."""
