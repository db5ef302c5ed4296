// Oracle answers, by the kubelet's own code, which credentials the kubelet finds in a docker config for an image.
//
// It reads questions from standard input, one JSON object per line, and writes one answer per line to standard output. The
// same source is compiled with every version of Kubernetes that is pinned beside it.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"log"
	"os"
	"reflect"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/util/parsers"
)

// question is about one file and one image.
type question struct {
	// Document holds the file's bytes, in base64.
	Document []byte `json:"document"`
	// Legacy is true for a .dockercfg.
	Legacy bool `json:"legacy"`
	// Image is a name as it stands in a pod; null if Name is given instead.
	Image *string `json:"image"`
	// Name is looked up unchanged.
	Name string `json:"name"`
}

// answer is what the kubelet finds.
type answer struct {
	// Accepted is true if the file is valid, so that the kubelet does not try the next file.
	Accepted bool `json:"accepted"`
	// Name is what the kubelet looks up; null if it refuses the image's name.
	Name *string `json:"name"`
	// Found holds user and password of each credential, in the order in which they are tried.
	Found [][2]string `json:"found"`
}

func main() {
	// The kubelet logs an error for each key that is no URL.
	klog.SetLogger(logr.Discard())
	questions := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<20))
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	answers := json.NewEncoder(out)
	for {
		var asked question
		switch err := questions.Decode(&asked); err {
		case nil:
		case io.EOF:
			if err := out.Flush(); err != nil {
				log.Fatal(err)
			}
			return
		default:
			log.Fatal(err)
		}
		if err := answers.Encode(ask(asked)); err != nil {
			log.Fatal(err)
		}
	}
}

func ask(asked question) answer {
	found := answer{Found: [][2]string{}}
	if asked.Image == nil {
		found.Name = &asked.Name
	} else if repository, _, _, err := parsers.ParseImageName(*asked.Image); err == nil {
		found.Name = &repository
	}
	config, err := read(asked)
	if err != nil {
		return found
	}
	found.Accepted = true
	if found.Name == nil {
		return found
	}
	keyring := &credentialprovider.BasicDockerKeyring{}
	add(keyring, config)
	credentials, _ := keyring.Lookup(*found.Name)
	for _, credential := range credentials {
		found.Found = append(found.Found, [2]string{credential.Username, credential.Password})
	}
	return found
}

// read decodes a file's bytes as the kubelet does. The kubelet's function for config.json is not exported: it decodes into this
// type and takes Auths.
func read(asked question) (credentialprovider.DockerConfig, error) {
	if asked.Legacy {
		return credentialprovider.ReadDockerConfigFileFromBytes(asked.Document)
	}
	var config credentialprovider.DockerConfigJSON
	err := json.Unmarshal(asked.Document, &config)
	return config.Auths, err
}

// add calls Add. Since 1.33 its first argument is the source of the credentials.
func add(keyring *credentialprovider.BasicDockerKeyring, config credentialprovider.DockerConfig) {
	method := reflect.ValueOf(keyring).MethodByName("Add")
	arguments := []reflect.Value{reflect.ValueOf(config)}
	if method.Type().NumIn() == 2 {
		arguments = append([]reflect.Value{reflect.Zero(method.Type().In(0))}, arguments...)
	}
	method.Call(arguments)
}
