package main

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// Sizes of the chart in SVG user units.
const (
	chartWidth = 760
	barHeight  = 16
	barStep    = 22
	labelWidth = 260
	valueWidth = 110
	panelHead  = 34
	panelFoot  = 14
)

// colors tell the others' bars from podgate's.
var colors = map[bool]string{true: "#2b6cb0", false: "#9aa5b1"}

// panel is bars that can be compared.
type panel struct {
	title string
	bars  []bar
}

type bar struct {
	label   string
	value   float64
	format  string // of the value
	podgate bool
}

// chart draws one panel of bars for every metric and MTU.
func (r *report) chart(w io.Writer) {
	var panels []panel
	for _, m := range r.metrics {
		unit := "more is better"
		if m.smaller {
			unit = "less is better"
		}
		if m.unit != "" {
			unit = m.unit + ", " + unit
		}
		for _, mtu := range r.mtus() {
			p := panel{title: fmt.Sprintf("%s (%s)", (&system{name: m.title, mtu: mtu}).title(), unit)}
			for _, name := range r.rows(mtu) {
				if c := r.cell(name, mtu, m.id); c != nil {
					format := "%.4g"
					if x := r.ratio(c, r.yardstick); x > 0 {
						format += fmt.Sprintf("  (x %.2f)", x)
					}
					p.bars = append(p.bars, bar{name, c.Median, format, strings.HasPrefix(name, "podgate")})
				}
			}
			panels = append(panels, p)
		}
	}
	r.draw(w, panels)
}

// draw writes the panels that have bars as an SVG.
func (r *report) draw(w io.Writer, panels []panel) {
	height := 30
	for _, p := range panels {
		if len(p.bars) > 0 {
			height += panelHead + len(p.bars)*barStep + panelFoot
		}
	}
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
<text x="10" y="20" fill="#555">%s</text>
`, chartWidth, height, html.EscapeString(fmt.Sprintf("%s, %d CPUs, Linux %s, %s", r.Machine.CPU, r.Machine.CPUs, r.Machine.Kernel, r.Started.Format("2006-01-02"))))
	y := 30
	for _, p := range panels {
		if len(p.bars) == 0 {
			continue
		}
		fmt.Fprintf(w, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y+22, html.EscapeString(p.title))
		y += panelHead
		most := 0.0
		for _, b := range p.bars {
			most = max(most, b.value)
		}
		for _, b := range p.bars {
			length := 0.0
			if most > 0 {
				length = b.value / most * (chartWidth - labelWidth - valueWidth)
			}
			fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
				labelWidth-8, y+12, html.EscapeString(b.label), labelWidth, y, length, barHeight, colors[b.podgate],
				labelWidth+length+6, y+12, fmt.Sprintf(b.format, b.value))
			y += barStep
		}
		y += panelFoot
	}
	fmt.Fprintln(w, "</svg>")
}
