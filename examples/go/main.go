// Ask modelsat which LLM should get an instruction.
//
//	go run . "If 3x + 7 = 22, what is x?" [127.0.0.1:50051]
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	modelsat "modelsat.example/route/gen/modelsat/v1"
)

// Retry if the server is overloaded or unreachable; grpc-go waits as long as the server says.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "modelsat.v1.RouterService", "method": "Route"}],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.05s",
      "maxBackoff": "1s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    }
  }]
}`

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: route TEXT [HOST:PORT]")
	}
	address := "127.0.0.1:50051"
	if len(os.Args) > 2 {
		address = os.Args[2]
	}
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		log.Fatal("error: ", err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if token := os.Getenv("MODELSAT_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	answer, err := modelsat.NewRouterServiceClient(connection).Route(ctx, &modelsat.RouteRequest{
		Instruction: &modelsat.RouteRequest_Text{Text: os.Args[1]},
		Policy: &modelsat.Policy{
			Objective:   &modelsat.Policy_CostSensitivity{CostSensitivity: 0.2},
			RankingSize: 3,
		},
	})
	if err != nil {
		log.Fatal("error: ", err)
	}
	for _, ranked := range answer.GetRanking() {
		name := strings.TrimPrefix(ranked.GetCandidate(), "candidates/")
		fmt.Printf("%.3f  %s\n", ranked.GetProbability(), name)
	}
	fmt.Println(answer.GetReason())
}
