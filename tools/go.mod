// Here for go.sum alone: the hashes that tools/install holds the modules of its programs to.
module outlive/tools

go 1.26.0
