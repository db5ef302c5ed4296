// Plugin-oracle does, by the kubelet's own code, what the kubelet does with credential provider plugins.
//
//	plugin-oracle CONFIG BIN-DIR    registers the plugins of a CredentialProviderConfig first
//	plugin-oracle                   registers none
//
// It reads questions from standard input, one JSON object per line, and writes one answer per line to standard output. This
// file is compiled with every version of Kubernetes that is pinned beside it, register.go is the version's own.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"
)

// question is about a configuration or about an image.
type question struct {
	// Files holds the files of a directory of configurations, by name; null if the question is about an image. One file
	// without a name is a configuration that is a single file.
	Files map[string]string `json:"files"`
	// Image is a name without tag, which is looked up in the answers of the plugins.
	Image string `json:"image"`
	// ServiceAccount is the pod's.
	ServiceAccount serviceAccount `json:"serviceAccount"`
}

type serviceAccount struct {
	// Name is empty for a pod without a service account.
	Name string `json:"name"`
	// Token is what the API server answers.
	Token string `json:"token"`
	// Annotations are those of the service account.
	Annotations map[string]string `json:"annotations"`
}

// answer is what the kubelet says.
type answer struct {
	// Error says why a configuration is invalid; empty if it is valid.
	Error string `json:"error"`
	// Found holds user and password of each credential, in the order in which they are tried.
	Found [][2]string `json:"found"`
	// Logged holds what the kubelet logged, which is errors.
	Logged string `json:"logged"`
	// Audience is that of the token which the kubelet requested; empty if it requested none.
	Audience string `json:"audience"`
}

// asked is the question that is being answered. The kubelet asks the API server by functions that are registered once.
var asked question

// audience is that of the last token.
var audience string

func main() {
	var mutex sync.Mutex
	var logged strings.Builder
	klog.SetLogger(funcr.New(func(_, line string) {
		mutex.Lock()
		defer mutex.Unlock()
		logged.WriteString(line + "\n")
	}, funcr.Options{}))
	if len(os.Args) == 3 {
		if err := register(os.Args[1], os.Args[2]); err != nil {
			log.Fatal(err)
		}
	}
	questions := json.NewDecoder(bufio.NewReader(os.Stdin))
	answers := json.NewEncoder(os.Stdout)
	for {
		asked, audience = question{}, ""
		switch err := questions.Decode(&asked); err {
		case nil:
		case io.EOF:
			return
		default:
			log.Fatal(err)
		}
		logged.Reset()
		given := answer{Found: [][2]string{}}
		if asked.Files != nil {
			given.Error = check(asked.Files)
		} else {
			given.Found = append(given.Found, lookup(asked.Image, asked.ServiceAccount.Name)...)
		}
		given.Audience, given.Logged = audience, logged.String()
		if err := answers.Encode(given); err != nil {
			log.Fatal(err)
		}
	}
}

// check says what is wrong with a configuration. A valid one is registered with a directory that has no plugins, which fails
// after the configuration was checked.
func check(files map[string]string) string {
	directory, err := os.MkdirTemp("", "plugin-oracle-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(directory)
	config, plugins := filepath.Join(directory, "config"), filepath.Join(directory, "plugins")
	for _, path := range []string{config, plugins} {
		if err := os.Mkdir(path, 0o700); err != nil {
			log.Fatal(err)
		}
	}
	for name, text := range files {
		path := filepath.Join(config, name)
		if name == "" {
			path = filepath.Join(directory, "config.yaml")
			config = path
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			log.Fatal(err)
		}
	}
	err = register(config, plugins)
	if err == nil {
		log.Fatal("registered without a plugin")
	}
	if strings.HasPrefix(err.Error(), "plugin binary executable") {
		return ""
	}
	return err.Error()
}
