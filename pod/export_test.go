package pod

// Mirror is for tests that spoil an /etc of their own.
var Mirror = mirror
