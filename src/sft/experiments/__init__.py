"""What runs around DVC: the check before it, params of the command line, profiles, sweeps."""
