"""Search spaces: functions (trial, backbone) -> Configuration."""
