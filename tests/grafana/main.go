// Checks a dashboard against Grafana's own schema: every field that it has must be known, and every required one must be there.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		fail(err)
	}
	var board dashboard.Dashboard
	if err := board.UnmarshalJSONStrict(text); isError(err) {
		fail(err)
	}
	if err := board.Validate(); isError(err) {
		fail(err)
	}
	fmt.Println(len(board.Panels), "panels are as Grafana's schema wants them")
}

// isError tells an error from an empty list of errors, which is not nil.
func isError(err error) bool {
	return err != nil && err.Error() != ""
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
