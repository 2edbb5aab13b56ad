"""Who can be chosen: aptitude -> embedding -> immutable table, persisted."""
